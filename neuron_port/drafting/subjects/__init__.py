"""What kernels are drafted for: layers of models and functions in files, each turned into a task and a recipe."""
