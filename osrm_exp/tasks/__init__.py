"""What a task is: rows, encoding, batches, metrics."""
