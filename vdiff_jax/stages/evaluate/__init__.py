"""The stage that measures base and students, and draws the page."""
