#!/usr/bin/env nextflow

// Reconstructs every stack of a table: nextflow run integrations/nextflow --stacks stacks.csv; see README.md.
include { EMFORMER_RECONSTRUCT } from './modules/emformer/reconstruct/main'

workflow {
    if (!params.stacks) {
        error("--stacks is missing; expected a table with the header name,stack,voxel_size,thickness.")
    }
    stacks = channel.fromPath(params.stacks, checkIfExists: true)
        .splitCsv(header: true)
        .map { row -> tuple([id: row.name, thickness: row.thickness ?: 1], file(row.stack, checkIfExists: true), row.voxel_size) }

    EMFORMER_RECONSTRUCT(stacks, file("${params.outdir}/.unfinished").toString())
}
