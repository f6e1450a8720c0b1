"""No Python surface: replies of leases, for apply and batch."""
