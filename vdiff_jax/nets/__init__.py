"""Networks: maps from (z_t, logsnr_t, label) to a prediction of x, eps, v or both."""
