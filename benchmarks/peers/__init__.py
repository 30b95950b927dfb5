"""What users of PyTorch write for the jobs of this project, for its speed benchmark."""
