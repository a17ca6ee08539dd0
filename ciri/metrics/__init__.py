"""How good a result is: against known masks and known backgrounds, over the whole frame and near the target."""
