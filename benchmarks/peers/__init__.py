"""Published searches for timestep schedules, each written from its paper, and a table of them."""
