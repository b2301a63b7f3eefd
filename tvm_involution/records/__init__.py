# SPDX-License-Identifier: Apache-2.0
"""What has been tuned: MetaSchedule records, one folder a target."""
