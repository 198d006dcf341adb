"""What several routes need and none of them owns."""
