"""What the tests share: stand-ins for the parts around the thing under test."""
