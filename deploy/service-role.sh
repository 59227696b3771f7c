#!/bin/sh
# Make the service's role in Postgres, or change its password; in the container of Postgres.
set -eu
psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'END'
\getenv password POSTGRES_SERVICE_PASSWORD
SELECT 'CREATE ROLE arkloop_service'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'arkloop_service')
\gexec
ALTER ROLE arkloop_service LOGIN PASSWORD :'password';
END
