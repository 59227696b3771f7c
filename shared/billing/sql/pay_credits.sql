-- Release the credits that a run has reserved and pay its charge, as far as credits are left.
--
-- Returns what was paid.
WITH payment AS (
    SELECT least(%(charge)s, balance - held + %(held)s) AS paid FROM credit_balances
    WHERE org_id = %(org_id)s FOR UPDATE
)
UPDATE credit_balances b SET held = b.held - %(held)s, balance = b.balance - payment.paid
FROM payment WHERE b.org_id = %(org_id)s RETURNING payment.paid
