"""What DESIGN section 7 promises, measured: both sides of each row in the same run."""
