"""Small networks that are trained in minutes, and what schedules do on them."""
