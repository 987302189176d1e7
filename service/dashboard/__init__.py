"""What a person sees in a browser: the dashboard and the API's reference, as static files."""
