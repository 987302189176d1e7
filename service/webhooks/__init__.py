"""What the HTTP face and the workers share of webhooks: where one may point, how its messages are signed and its secrets kept."""
