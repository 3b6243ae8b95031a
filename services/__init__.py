"""The services of Boxoffice. None imports another; `cli` alone knows them all."""
