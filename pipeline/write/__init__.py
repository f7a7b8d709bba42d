"""What a part holds: pictures, their metadata table, and where each edit came from."""
