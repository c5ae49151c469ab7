"""What every SQL part shares: engines, transactions, the database's clock, upserts, migrations, errors."""
