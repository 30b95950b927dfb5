"""Reading and writing without harm: whole files, files of weights, fingerprints."""
