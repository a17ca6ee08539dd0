"""Measuring removals over many clips: cases on disk, runs that resume, tables, curves and a report."""
