"""What is computed: a folder for each family of operations."""
