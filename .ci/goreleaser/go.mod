module github.com/netgroup-polito/diskforge/ci-goreleaser

go 1.26.1
