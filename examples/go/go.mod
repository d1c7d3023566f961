module participant

go 1.21
