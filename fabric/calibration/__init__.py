"""What calibration rows use of a model's matrices, for quantizing them. Leans on the models."""
