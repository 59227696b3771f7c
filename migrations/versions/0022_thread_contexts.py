"""The truncation points of threads.

Revision ID: 0022
Revises: 0021
"""

from alembic import op

revision = "0022"
down_revision = "0021"

_STATEMENTS = """
CREATE TABLE thread_contexts (
    thread_id UUID NOT NULL,
    window_tokens BIGINT NOT NULL,
    upto_position BIGINT NOT NULL,
    upto_seq BIGINT NOT NULL,
    dropped_messages BIGINT NOT NULL,
    result_tokens BIGINT,
    summary TEXT,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
    CONSTRAINT pk_thread_contexts PRIMARY KEY (thread_id, window_tokens),
    CONSTRAINT fk_thread_contexts_thread_id
        FOREIGN KEY (thread_id) REFERENCES threads (id) ON DELETE CASCADE
);
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
