"""Several runs that differ in nothing but what is compared, from one file."""
