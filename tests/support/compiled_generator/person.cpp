Ada
