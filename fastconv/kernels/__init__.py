"""What computes: tasks, and parallel loops, that know arrays and integers only."""
