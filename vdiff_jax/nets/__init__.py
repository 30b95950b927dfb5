"""Networks: maps from z_t, its log-SNR and a condition to x, eps, v or both."""
