# Start SeaweedFS, with an S3 server on port 8333 of this machine only. Flags are passed on: sh server.sh -s3.port=9000
mkdir -p data
exec weed -logdir=data server -dir=data -ip=127.0.0.1 -ip.bind=127.0.0.1 -filer -s3 -s3.config=s3.json \
    -master.volumeSizeLimitMB=64 -s3.port.iceberg=0 -s3.port.lance=0 "$@"
