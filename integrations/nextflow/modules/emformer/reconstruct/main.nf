// Reconstructs one stack. An attempt that is cut off leaves its blocks in the folder `unfinished`; the next one goes on with them.
process EMFORMER_RECONSTRUCT {
    tag "${meta.id}"
    label 'process_medium'

    input:
    tuple val(meta), path(stack, stageAs: 'stack/*'), val(voxel_size)
    val unfinished

    output:
    tuple val(meta), path("*.ome.zarr")     , emit: zarr
    tuple val(meta), path("*.ome.zarr.json"), emit: json
    path "versions.yml"                     , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${meta.id}"
    """
    unfinished='${unfinished}'
    mkdir -p "\$unfinished"
    how=--overwrite
    [ ! -e "\$unfinished/.${prefix}.ome.zarr.run/job.json" ] || how=--resume
    # Every attempt stages the stack elsewhere; by the path that the link leads to, a run knows it again.
    stack=\$(readlink ${stack} || echo ${stack})

    OMP_NUM_THREADS=${task.cpus} emformer-hub --offline reconstruct \\
        "\$stack" "\$unfinished/${prefix}.ome.zarr" \\
        --voxel-size '${voxel_size}' \\
        ${args} \\
        \$how
    mv "\$unfinished/${prefix}.ome.zarr" "\$unfinished/${prefix}.ome.zarr.json" .

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        emformer-hub: \$(emformer-hub --version | sed 's/.* //')
    END_VERSIONS
    """

    stub:
    def prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir ${prefix}.ome.zarr
    touch ${prefix}.ome.zarr.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        emformer-hub: \$(emformer-hub --version | sed 's/.* //')
    END_VERSIONS
    """
}
