"""One file for each data set; `get_config(stage)` returns its ConfigDict."""
