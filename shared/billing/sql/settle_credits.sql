-- Reserve credits of an org, or release some (`more` below 0); returns the change.
--
-- Credits that are not there cannot be reserved. A run needs more than are left if a call has cost
-- more than its worst case, or if the org pays in advance only since then.
WITH change AS (
    SELECT least(%(more)s, balance - held) AS more FROM credit_balances
    WHERE org_id = %(org_id)s FOR UPDATE
)
UPDATE credit_balances b SET held = b.held + change.more
FROM change WHERE b.org_id = %(org_id)s RETURNING change.more
