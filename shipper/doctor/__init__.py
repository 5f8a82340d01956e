"""What ``shipper doctor`` looks at: one module per area, each giving rows; `shipper.doctor.row.CHECKS` lists them all."""
