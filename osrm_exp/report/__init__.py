"""Tables, figures and comparisons, made from rows alone."""
