-- Release the credits that a run has reserved and enter its charge: paid as far as credits are left
-- that no other run has reserved, owed beyond that.
--
-- Also of a run that has reserved none: a balance that is there pays before anything is owed.
WITH payment AS (
    SELECT least(%(charge)s, balance - held + %(held)s) AS paid FROM credit_balances
    WHERE org_id = %(org_id)s FOR UPDATE
), changed AS (
    UPDATE credit_balances b SET held = b.held - %(held)s, balance = b.balance - payment.paid
    FROM payment WHERE b.org_id = %(org_id)s
), part (id, account, credits) AS (
    SELECT %(paid_id)s::uuid, 'customer', paid FROM payment
    UNION ALL
    SELECT %(owed_id)s::uuid, 'receivable', %(charge)s - coalesce((SELECT paid FROM payment), 0)
)
INSERT INTO ledger_entries (id, org_id, kind, run_id, debit_account, credit_account, credits)
SELECT id, %(org_id)s, 'usage', %(run_id)s, account, 'revenue', credits FROM part WHERE credits > 0
