"""The sender of webhooks: what happens in an org's runs, to addresses of the org's own."""
