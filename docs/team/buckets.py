"""Create the team's two buckets: every version of an object is kept for 90 days after its end.

Where they are and who may make them comes from the environment: AWS_ENDPOINT_URL_S3 (left out for
AWS itself), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION. Safe to run again.
"""

import sys

import boto3

BUCKETS = ("lesionseg-mlflow", "lesionseg-dvc")
KEEP_DAYS = 90

s3 = boto3.client("s3")
existing = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
region = s3.meta.region_name
place = {}
if region != "us-east-1":  # which S3 wants unnamed
    place = {"CreateBucketConfiguration": {"LocationConstraint": region}}
for bucket in BUCKETS:
    if bucket not in existing:
        s3.create_bucket(Bucket=bucket, **place)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    rule = {
        "ID": "forget",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": KEEP_DAYS},
    }
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    sys.stdout.write(f"{bucket}: versions are kept for {KEEP_DAYS} days\n")
