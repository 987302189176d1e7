"""data sets count the tries of their check apart from its fence

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op
revision = '0013'
down_revision = '0012'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('datasets', sa.Column('tries', sa.Integer(), server_default='0', nullable=False))
    op.execute("UPDATE datasets SET tries = attempt")


def downgrade() -> None:
    op.drop_column('datasets', 'tries')
