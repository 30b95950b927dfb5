"""Methods of distillation, by which a student learns: a module for each."""
