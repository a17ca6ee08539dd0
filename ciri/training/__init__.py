"""Training: data, synthesis, losses, and runs that can be interrupted and resumed."""
