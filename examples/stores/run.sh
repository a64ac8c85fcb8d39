# Put the flights on the store, score them there, and verify the output.
set -eu
export AWS_ACCESS_KEY_ID=example-key AWS_SECRET_ACCESS_KEY=example-secret
endpoint=${1:-http://127.0.0.1:8333}
python upload.py "$endpoint"
options="--store-option endpoint=$endpoint --store-option region=us-east-1 --store-option allow_http=true"
scorer run --config job.toml $options
scorer verify s3://lake/scores $options
