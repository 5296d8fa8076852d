"""What did the operator write? Files and Triton's arguments become checked, frozen values."""
