"""The jobs of this project as users of PyTorch write them, for its speed benchmark."""
