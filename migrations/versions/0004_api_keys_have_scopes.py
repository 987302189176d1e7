"""API keys have scopes and may expire

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Keys that are there may go on doing everything.
    op.add_column('api_keys', sa.Column('scopes', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("""'["*"]'::jsonb"""), nullable=False))
    op.alter_column('api_keys', 'scopes', server_default=None)
    op.add_column('api_keys', sa.Column('expires_at', postgresql.TIMESTAMP(timezone=True), nullable=True))


def downgrade() -> None:
    # The earlier schema knows keys for everything alone: a narrower one would come out of it with more than it was given.
    op.execute("""UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE expires_at IS NOT NULL OR scopes <> '["*"]'""")
    op.drop_column('api_keys', 'expires_at')
    op.drop_column('api_keys', 'scopes')
