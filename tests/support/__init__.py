"""What the tests have in common: stores, processes of the service, jobs and their ends, waiting. One of each."""
