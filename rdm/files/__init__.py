"""What is written and read: whole or absent, hashed, described and checked. Nothing is unpickled."""
