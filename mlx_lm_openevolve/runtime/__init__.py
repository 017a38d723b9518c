"""What happens in a user's process: patch, dispatch, plans."""
