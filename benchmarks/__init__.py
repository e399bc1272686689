"""What jaxkernels costs and what its schedules are worth; see README.md."""
