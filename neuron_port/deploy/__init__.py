"""From a bundle to an endpoint on AWS: plans with prices first, then exactly what the plan says, then nothing left.

    errors       every failure of AWS as a sentence with its cure; the only place that knows botocore's exceptions
    aws          one session, one way to call a service
    tags         what marks our resources, and finding them by it
    locations    s3://bucket/prefix
    prices       what hosts and storage cost, with source and date
    archive      a bundle as a reproducible archive, and results unpacked safely
    job_store    the job protocol on S3: uploads that resume, records, status, results
    job          what a remote build is: phases, instances, limits
    user_data    the script that an instance runs by itself
    stacks       CloudFormation: create, explain a failure, delete
    machines     instances: start (spot, then on demand), look, end
    watch        waits for a phase under a deadline and a cost ceiling
    remote_build the build itself
    plan         what would be created and what it costs
    endpoint     the serving instance, EKS and storage
    export       checkpoints for vLLM and optimum, model.tar.gz for SageMaker

Nothing here has run against an AWS account: everything is exercised against moto's server over HTTP.
"""
